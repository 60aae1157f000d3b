"""The page: Gradio's parts, wired to `Answers`. It is imported when a page is built, after `server.page_modules`."""

from functools import partial
from typing import TYPE_CHECKING, Any

from hidistill.view.answers import Answers
from hidistill.view.blind import Place
from hidistill.view.cast import Match, Scene
from hidistill.view.wishes import IN_TURN, MOST_IMAGES, MOST_SCALE, MOST_STEPS, MOST_TEACHER_STEPS

if TYPE_CHECKING:
    from gradio import Blocks
    from gradio.themes import Base

REFRESH_SECONDS = 3
FIELDS = ("asked", "seed", "count", "student_steps", "teacher_steps", "scale")


def theme() -> "Base":
    """A plain theme in the fonts of the system: the usual ones would be fetched."""
    from gradio.themes import Base

    return Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(scene: Scene, answers: Answers) -> "Blocks":
    """The page of a scene."""
    import gradio as gr

    with gr.Blocks(title="hidistill view", analytics_enabled=False) as page:
        gr.HTML('<h1 class="hd-title">hidistill view</h1>')
        if scene.matches:
            fields = settings(scene)
            with gr.Tabs():
                compare_tab(answers, fields, page)
                flow_tab(answers, fields)
                attention_tab(answers, fields)
                blind_tab(answers, fields)
                if scene.runs:
                    run_tab(scene, answers)
        else:
            with gr.Tabs():
                run_tab(scene, answers)
    return page.queue(default_concurrency_limit=1)


def settings(scene: Scene) -> dict[str, Any]:
    """The fields that all tabs share."""
    import gradio as gr

    first = next(iter(scene.matches.values()))
    names = list(scene.matches)
    with gr.Row():
        student = gr.Dropdown(names, value=names[0], label="Student", elem_id="student", min_width=200)
        label = gr.Dropdown(**class_field(first), label="Class", elem_id="class", min_width=200)
        prompt = gr.Textbox(**prompt_field(first), label="Prompt", elem_id="prompt", min_width=200)
        seed = gr.Textbox("0", label="Seed", elem_id="seed", min_width=100)
    with gr.Row():
        count = gr.Slider(1, MOST_IMAGES, 6, step=1, buttons=[], label="Images", elem_id="count", min_width=150)
        student_steps = gr.Slider(
            1, MOST_STEPS, 1, step=1, buttons=[], label="Student's steps", elem_id="student-steps", min_width=150
        )
        teacher_steps = gr.Slider(
            1,
            MOST_TEACHER_STEPS,
            50,
            step=1,
            buttons=[],
            label="Teacher's steps",
            elem_id="teacher-steps",
            min_width=150,
        )
        scale = gr.Slider(
            0, MOST_SCALE / 2, first.scale, step=0.1, buttons=[], label="Guidance", elem_id="scale", min_width=150
        )

    def switched(name: str) -> tuple[Any, Any, Any]:
        match = scene.match(name)
        return gr.update(**class_field(match)), gr.update(**prompt_field(match)), match.scale

    student.change(switched, student, [label, prompt, scale], api_visibility="private", queue=False)
    return {
        "student": student, "label": label, "prompt": prompt, "seed": seed, "count": count,
        "student_steps": student_steps, "teacher_steps": teacher_steps, "scale": scale,
    }  # fmt: skip


def class_field(match: Match) -> dict[str, Any]:
    """Choices of the class; a name or number may also be typed."""
    space = match.space
    known = list(space.names) or [str(i) for i in range(space.classes)]
    visible = bool(space.classes) and space.encode is None
    return {"choices": [IN_TURN, *known], "value": IN_TURN, "allow_custom_value": True, "visible": visible}


def prompt_field(match: Match) -> dict[str, Any]:
    """The prompt, for those who understand one."""
    return {"value": "", "visible": match.space.encode is not None}


def inputs_of(fields: dict[str, Any]) -> list[Any]:
    """The fields in the order in which `given` takes their values."""
    return [fields[name] for name in ("student", "label", "prompt", *FIELDS[1:])]


def given(answers: Answers, name: str, label: str, prompt: str, *rest: object) -> dict[str, Any]:
    """The values of the fields by name: one of class and prompt is what is asked for."""
    match = answers.scene.matches.get(name)
    asked = prompt if match is not None and match.space.encode is not None else label
    return dict(zip(FIELDS, (asked, *rest), strict=True))


def compare_tab(answers: Answers, fields: dict[str, Any], page: "Blocks") -> None:
    """Both from the same noise."""
    import gradio as gr

    def draw(name: str, *values: Any) -> str:  # noqa: ANN401 -- what stands in the fields
        return answers.compare(name, **given(answers, name, *values))

    def next_seed(seed: str) -> str:
        return str(int(seed) + 1) if seed.strip().isdecimal() else seed

    with gr.Tab("Side by side", id="compare"):
        with gr.Row():
            button = gr.Button("Draw", variant="primary", elem_id="draw")
            onward = gr.Button("Next seed", elem_id="next-seed")
        out = gr.HTML(elem_id="compared")
    options: dict[str, Any] = {"inputs": inputs_of(fields), "outputs": out, "api_visibility": "private"}
    button.click(draw, **options)
    fields["seed"].submit(draw, **options)
    onward.click(next_seed, fields["seed"], fields["seed"], api_visibility="private").then(draw, **options)
    page.load(draw, **options)


def flow_tab(answers: Answers, fields: dict[str, Any]) -> None:
    """From noise to image."""
    import gradio as gr

    def draw(name: str, *values: Any) -> str:  # noqa: ANN401
        return answers.flow(name, **given(answers, name, *values))

    with gr.Tab("Noise to image", id="flow") as tab:
        button = gr.Button("Follow from noise to image", variant="primary", elem_id="follow")
        out = gr.HTML(elem_id="flow")
    options: dict[str, Any] = {"inputs": inputs_of(fields), "outputs": out, "api_visibility": "private"}
    button.click(draw, **options)
    tab.select(draw, **options)


def attention_tab(answers: Answers, fields: dict[str, Any]) -> None:
    """Where the discriminator looks."""
    import gradio as gr

    def look(t: float, name: str, *values: Any) -> str:  # noqa: ANN401
        return answers.attention(name, t, **given(answers, name, *values))

    with gr.Tab("Attention", id="attention") as tab:
        level = gr.Slider(0, 1, 0.3, step=0.05, buttons=[], label="Noise level t at which it judges", elem_id="level")
        button = gr.Button("Show attention", variant="primary", elem_id="look")
        out = gr.HTML(elem_id="looks")
    options: dict[str, Any] = {"inputs": [level, *inputs_of(fields)], "outputs": out, "api_visibility": "private"}
    button.click(look, **options)
    tab.select(look, **options)


def blind_tab(answers: Answers, fields: dict[str, Any]) -> None:
    """The blind comparison."""
    import gradio as gr

    def following(count: int, name: str, *values: Any) -> tuple[Any, ...]:  # noqa: ANN401
        found, html = answers.trial(name, count, **without_seed(given(answers, name, *values)))
        buttons = [gr.update(interactive=found is not None)] * 3
        return found, count + 1, html, *buttons

    def vote(place: Place, found: Any, count: int, name: str, *values: Any) -> tuple[Any, ...]:  # noqa: ANN401
        done, said = answers.vote(found, place)
        if not done:
            return said, *[gr.skip()] * 6
        return said, *following(count, name, *values)

    def result(name: str, *values: Any) -> str:  # noqa: ANN401
        return answers.preference(name, **without_seed(given(answers, name, *values)))

    with gr.Tab("Blind test", id="blind"):
        gr.HTML(
            '<p class="hd-note">Two pictures from the same noise, one by the student and one by the teacher, on sides '
            "that are drawn anew each time. Keys: 1 left, 2 no difference, 3 right.</p>"
        )
        start = gr.Button("Next pair", elem_id="next-pair")
        pictures = gr.HTML(elem_id="blind")
        with gr.Row():
            left = gr.Button("Left", interactive=False, elem_id="vote-left", min_width=90)
            neither = gr.Button("No difference", interactive=False, elem_id="vote-neither", min_width=90)
            right = gr.Button("Right", interactive=False, elem_id="vote-right", min_width=90)
        said = gr.HTML(elem_id="vote-said")
        show = gr.Button("Show the result so far", elem_id="show-result")
        told = gr.HTML(elem_id="preference")
        # Within the tab: whatever stands between tabs is counted as one of them.
        trial, count = gr.State(None), gr.State(0)
    shown = [trial, count, pictures, left, neither, right]
    private: dict[str, Any] = {"api_visibility": "private"}
    start.click(following, [count, *inputs_of(fields)], shown, **private)
    places: dict[Place, Any] = {"left": left, "neither": neither, "right": right}
    for place, button in places.items():
        button.click(partial(vote, place), [trial, count, *inputs_of(fields)], [said, *shown], **private)
    show.click(result, inputs_of(fields), told, **private)


def without_seed(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a blind trial, which draws its own seed and one picture a side."""
    return {name: value for name, value in values.items() if name not in ("seed", "count")}


def run_tab(scene: Scene, answers: Answers) -> None:
    """Run folders, refreshed while they change."""
    import gradio as gr

    names = list(scene.runs)

    def refreshed(name: str, before: object) -> tuple[Any, Any]:
        now = answers.state(name)
        return (gr.skip(), gr.skip()) if now == before else (answers.run(name), now)

    def chosen(name: str) -> tuple[str, Any]:
        return answers.run(name), answers.state(name)

    with gr.Tab("Runs", id="runs") as tab:
        run = gr.Dropdown(names, value=names[0], label="Run folder", elem_id="run")
        out = gr.HTML(elem_id="run-page")
        state, timer = gr.State(None), gr.Timer(REFRESH_SECONDS, active=False)
    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    run.change(chosen, run, [out, state], **options)
    tab.select(chosen, run, [out, state], **options)
    tab.select(lambda: gr.Timer(active=True), None, timer, **options)
    timer.tick(refreshed, [run, state], [out, state], **options)
