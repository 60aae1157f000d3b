// Votes by key: 1 left, 2 no difference, 3 right; not while somebody types.
document.addEventListener("keydown", (event) => {
  const place = {"1": "vote-left", "2": "vote-neither", "3": "vote-right"}[event.key];
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (!place || typing || event.ctrlKey || event.altKey || event.metaKey) return;
  const button = document.getElementById(place);
  if (button && !button.disabled && button.offsetParent !== null) button.click();
});
