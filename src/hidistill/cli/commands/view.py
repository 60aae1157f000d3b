"""`hidistill view`: teacher and student side by side, on a page in the browser."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console


def view(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    teacher: Path | None = None,
    votes: Path | None = None,
    port: int = 7860,
    host: str = "127.0.0.1",
    open: bool = False,
) -> int:
    """Open a page that draws teacher and student from the same noise; Ctrl-C ends it.

    Side by side with latencies, a slider from noise to image, the discriminator's attention, a blind test that keeps
    its votes in a file, and runs with their curves while they train. Needs `pip install 'hidistill[view]'`.

    Args:
        sources: run folders (runs/demo, say) and weights files of students.
        teacher: weights or run of the teacher, for students that do not say who theirs is.
        votes: file of the blind test's votes (.jsonl); by default votes.jsonl in the first run folder, or here.
        port: where the page is served; 0 takes any that is free.
        host: the address that is listened at; another one than 127.0.0.1 lets others in.
        open: whether the browser is opened too.
    """
    from hidistill.view.server import bound, page_modules, serve, warning

    page_modules()
    console = Console()
    with bound(host, port) as at:
        if said := warning(host):
            Console(stderr=True).print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)
        from hidistill.cli.showing import scene
        from hidistill.view.answers import Answers
        from hidistill.view.app import build

        answers = Answers(scene(sources, teacher=teacher, votes=votes))
        answers.warm()
        page = build(answers.scene, answers)
        address = f"http://{f'[{host}]' if ':' in host else host}:{at.getsockname()[1]}"

        def started() -> None:
            console.print(f"the page is at {address} (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True)
            if open:
                import webbrowser

                webbrowser.open(address)

        serve(page, at, on_start=started)
    return 0


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    return tyro.cli(view, args=argv, prog="hidistill view")
