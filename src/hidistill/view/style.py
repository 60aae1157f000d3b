"""Looks and keys of the page, from the files beside this one. Gradio would prefix every rule that is given as `css`."""

from importlib.resources import files


def text(name: str) -> str:
    """A file of this package."""
    return files("hidistill.view").joinpath(name).read_text(encoding="utf-8")


HEAD = f"<style>{text('page.css')}</style><script>{text('keys.js')}</script>"
