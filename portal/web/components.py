"""What the pages are made of: plain HTML elements with the portal's own look, and a few small browser components."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.elements.mixins.value_element import ValueElement

from portal.web.icons import MarkKind, icon, mark

Handler = Callable[[], Any]


class Tag(TextElement):
    """Any HTML element: `Tag("h2", "Faults", "muted", id="faults")`.

    Args:
        tag: its name.
        text: its text; children may follow.
        classes: CSS classes.
        attributes: HTML attributes, an underscore for each hyphen (`aria_label="…"`).
    """

    def __init__(self, tag: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=tag, text=text)
        if classes:
            self.classes(classes)
        self.set(**attributes)

    def set(self, **attributes: Any) -> Tag:
        """Change HTML attributes; None takes one away."""
        for name, value in attributes.items():
            attribute = name.rstrip("_").replace("_", "-")
            if value is None:
                self.props.pop(attribute, None)
            else:
                self.props[attribute] = value
        return self


class Drawing(ui.html):
    """SVG text that the portal itself wrote."""

    def __init__(self, svg: str, classes: str = "icon") -> None:
        super().__init__(svg, sanitize=False, tag="span")
        self.classes(classes)


class Button(Tag):
    """A button, or a link that looks like one when `to` is given.

    A handler that is a coroutine function disables the button until it has finished, so that nothing happens twice.
    """

    def __init__(
        self,
        label: str,
        on_click: Handler | None = None,
        *,
        kind: str = "",
        drawing: str = "",
        to: str = "",
        small: bool = False,
        bare: bool = False,
        submit: bool = False,
        **attributes: Any,
    ) -> None:
        classes = " ".join(
            each
            for each in ("btn", f"btn-{kind}" if kind else "", "btn-small" if small else "", "btn-icon" if bare else "")
            if each
        )
        if to:
            super().__init__("a", "", classes, href=to, **attributes)
        else:
            super().__init__("button", "", classes, type="submit" if submit else "button", **attributes)
        if bare:
            self.set(aria_label=label, title=label)
        with self:
            if drawing:
                Drawing(icon(drawing))
            self.caption = None if bare else Tag("span", label)
        if on_click is not None:
            self._on_click = on_click
            self.on("click", self._clicked, [])

    async def _clicked(self) -> None:
        if self.props.get("disabled"):
            return
        result = self._on_click()
        if asyncio.iscoroutine(result):
            self.enable(False)
            try:
                await result
            finally:
                if not self.is_deleted:
                    self.enable(True)

    def enable(self, on: bool) -> None:
        """Let it be pressed, or not."""
        self.set(disabled=None if on else True)


class TextField(ValueElement[str], component="elements/text_field.js"):
    """A text control with its label.

    Args:
        label: what it is; always there, hidden from sight with `label_hidden`.
        rows: a text area of so many rows.
        suggestions: offered while typing; anything else may be typed too.
        options: further attributes of `elements/text_field.js`: hint, type, placeholder, mono, inputmode, autocomplete.
    """

    VALUE_PROP = "value"
    LOOPBACK = False

    def __init__(
        self,
        label: str,
        value: str = "",
        *,
        on_change: Callable[[Any], Any] | None = None,
        rows: int | None = None,
        suggestions: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(value=value, on_value_change=on_change)
        self.props["id"] = self.html_id
        self.props["label"] = label
        self.props["suggestions"] = list(suggestions)
        if rows:
            self.props["rows"] = rows
        for name, option in options.items():
            self.props[name.replace("_", "-")] = option

    def wrong(self, problem: str) -> None:
        """Show what is wrong with the value; an empty text takes it back."""
        if self.props.get("error", "") != problem:
            self.props["error"] = problem

    def suggest(self, suggestions: Sequence[str]) -> None:
        """Replace what is offered while typing."""
        self.props["suggestions"] = list(suggestions)

    def _handle_value_change(self, value: Any) -> None:
        super()._handle_value_change(value)
        if self._send_update_on_value_change:
            self.run_method("updateValue")


class Choice(ValueElement[str], component="elements/choice.js"):
    """A native select with its label; `options` are pairs of value and label."""

    VALUE_PROP = "value"
    LOOPBACK = False

    def __init__(
        self,
        label: str,
        options: Sequence[tuple[str, str]],
        value: str = "",
        *,
        on_change: Callable[[Any], Any] | None = None,
        label_hidden: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(value=value, on_value_change=on_change)
        self.props["id"] = self.html_id
        self.props["label"] = label
        self.props["label-hidden"] = label_hidden
        self.props["hint"] = hint
        self.offer(options)

    def offer(self, options: Sequence[tuple[str, str]]) -> None:
        """Replace the options."""
        self.props["options"] = [{"value": value, "label": label} for value, label in options]


class Toggle(ValueElement[bool], component="elements/toggle.js"):
    """A switch with a word for its state; it moves when the server has moved it."""

    VALUE_PROP = "value"
    LOOPBACK = True

    def __init__(
        self,
        label: str,
        value: bool = False,
        *,
        on_change: Callable[[Any], Any] | None = None,
        bare: bool = False,
        on_text: str = "on",
        off_text: str = "off",
    ) -> None:
        super().__init__(value=value, on_value_change=on_change)
        self.props["label"] = label
        self.props["bare"] = bare
        self.props["on-text"] = on_text
        self.props["off-text"] = off_text

    def enable(self, on: bool) -> None:
        """Let it be moved, or not."""
        self.props["disable"] = not on


class Moment(Element, component="elements/moment.js"):
    """A time that the browser keeps right: `ago`, `clock`, `full` or `countdown`."""

    def __init__(self, at: datetime | None, form: str = "ago", *, ended: str = "expired", never: str = "never") -> None:
        super().__init__()
        self.props["never"] = never
        self.props["form"] = form
        self.props["ended"] = ended
        self.show(at)

    def show(self, at: datetime | None) -> None:
        """Change the time."""
        self.props["at"] = at.timestamp() if at else 0


class CopyLine(Element, component="elements/copy_line.js"):
    """A text to take along, with a copy button."""

    def __init__(self, text: str, label: str, *, large: bool = False) -> None:
        super().__init__()
        self.props["text"] = text
        self.props["label"] = label
        self.props["large"] = large


class ThemeSwitch(Element, component="elements/theme_switch.js"):
    """System, light or dark."""


class Credentials(Element, component="elements/credentials.js"):
    """A form that the browser sends straight to the REST API, so that a password never passes through the page.

    Args:
        url: where it is posted, as JSON.
        fields: `{"name", "label", "type", "autocomplete", "hint"?, "repeats"?, "optional"?}` each.
        action: the button's text; `busy_text` while it runs.
        after: the address to go to when it was accepted.
        extra: further members of what is posted.
    """

    def __init__(
        self,
        url: str,
        fields: list[dict[str, Any]],
        *,
        action: str,
        busy_text: str,
        after: str,
        extra: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.props["url"] = url
        self.props["fields"] = fields
        self.props["action"] = action
        self.props["busy-text"] = busy_text
        self.props["next"] = after
        self.props["extra"] = extra or {}


class Chart(Element, component="elements/chart.js"):
    """One quantity over the last minutes, with its readout.

    Args:
        top: the scale's end; None follows the largest value.
        points: pairs of Unix time and value, oldest first.
    """

    def __init__(
        self,
        label: str,
        unit: str,
        *,
        top: float | None = None,
        digits: int = 0,
        points: Sequence[tuple[float, float]] = (),
    ) -> None:
        super().__init__()
        self.props["label"] = label
        self.props["unit"] = unit
        self.props["digits"] = digits
        self.props["points"] = [list(point) for point in points]
        if top is not None:
            self.props["top"] = top

    def push(self, at: float, value: float) -> None:
        """Add a reading; one that is not newer than the last is ignored."""
        self.run_method("push", at, value)


class ConsoleLines(Element, component="elements/console.js"):
    """The console's lines, filtered, paused and bounded in the browser.

    A line is `{"id", "time", "node", "service", "level", "text"}`; ids rise, and a line that is shown already is not
    shown again.

    Args:
        nodes: show the node's name in each line.
        limit: so many lines are kept.
        waiting: what it says before the first line.
    """

    def __init__(self, *, nodes: bool, limit: int = 1000, waiting: str = "Waiting for the first line.") -> None:
        super().__init__()
        self.props["id"] = self.html_id
        self.props["nodes"] = nodes
        self.props["limit"] = limit
        self.props["waiting"] = waiting

    def begin_with(self, lines: list[dict[str, Any]]) -> None:
        """Give the page lines to begin with, oldest first; only while it is being built."""
        self.props["initial"] = lines

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines at the end."""
        self.run_method("append", lines)


class FilePick(Element, component="elements/file_pick.js"):
    """A button that lets the person choose a text file; `on_picked` gets its name and text.

    Args:
        accept: the endings that the system offers, for example `.py`.
        on_refused: gets a sentence when the file is too large.
    """

    def __init__(
        self, label: str, *, accept: str, on_picked: Callable[[str, str], Any], on_refused: Callable[[str], Any]
    ) -> None:
        super().__init__()
        self.props["label"] = label
        self.props["accept"] = accept
        self.on("picked", lambda event: on_picked(event.args["name"], event.args["text"]))
        self.on("refused", lambda event: on_refused(event.args))


_FOLLOW_THEME = """(() => {
  const editor = () => getElement(EDITOR);
  const follow = () => editor()?.setTheme(outstationTheme.dark ? "vscodeDark" : "vscodeLight");
  // An element that is mounted anew makes another editor, which has neither the name nor the theme.
  const dress = () => {
    const text = editor()?.$el.querySelector(".cm-content:not([aria-label])");
    if (!text) return;
    text.setAttribute("aria-label", "Source");
    editor().editorPromise.then(follow);
  };
  const begin = () => {
    // This may run before the element is there.
    if (!editor()?.$el.parentElement) return setTimeout(begin, 20);
    new MutationObserver(dress).observe(editor().$el.parentElement, {childList: true, subtree: true});
    addEventListener("outstation-theme", follow);
    dress();
  };
  begin();
})()"""


class SourceEditor(ui.codemirror):
    """A Python editor in the portal's colours, which follow the theme.

    Args:
        on_edit: called after each change.
        on_save: called for Ctrl-S, or Cmd-S.
    """

    def __init__(self, source: str, *, on_edit: Handler, on_save: Handler) -> None:
        super().__init__(
            source,
            language="Python",
            theme="vscodeLight",
            on_change=lambda _: on_edit(),
            keymap={"Mod-s": lambda _: on_save()},
        )
        self.classes("editor")
        ui.run_javascript(_FOLLOW_THEME.replace("EDITOR", str(self.id)))

    def wrong_line(self, line: int | None) -> None:
        """Mark a line as wrong; None takes the mark away."""
        self.decorations = [{"kind": "line", "line": line, "class": "cm-wrong-line"}] if line else []


def keep_from_leaving(changed: bool) -> None:
    """Let the browser ask before it leaves a page with changes that are not saved."""
    ui.run_javascript(f"window.onbeforeunload = {'(event) => event.preventDefault()' if changed else 'null'}")


class Drawn:
    """Remembers what each place of a page shows, so that it is drawn again only when that has changed."""

    def __init__(self) -> None:
        self._states: dict[int, Any] = {}

    def show(self, place: Element, state: Any, draw: Handler) -> None:
        """Clear `place` and call `draw` in it, unless it shows `state` already."""
        if place.id in self._states and self._states[place.id] == state:
            return
        self._states[place.id] = state
        place.clear()
        with place:
            draw()


def status(kind: MarkKind, label: str, classes: str = "") -> Tag:
    """A status mark: shape, colour and word."""
    holder = Tag("span", "", f"mark mark-{'idle' if kind == 'off' else kind} {classes}".strip())
    with holder:
        Drawing(mark(kind), "icon")
        Tag("span", label)
    return holder


def mark_only(kind: MarkKind, word: str) -> Drawing:
    """A status mark alone, for where its word stands beside it already or is read to who cannot see it."""
    drawing = Drawing(mark(kind), f"icon mark mark-{'idle' if kind == 'off' else kind}")
    drawing.props["role"] = "img"
    drawing.props["aria-label"] = word
    return drawing


@contextmanager
def panel(title: str, *, flush: bool = False, level: str = "h2", classes: str = "") -> Iterator[Tag]:
    """A titled part of a page; yields the place at the right of its title, for buttons."""
    section = Tag("section", "", f"panel {classes}".strip())
    section.set(aria_labelledby=f"{section.html_id}-title")
    with section:
        with Tag("div", "", "panel-head"):
            Tag(level, title, id=f"{section.html_id}-title")
            aside = Tag("div", "", "line")
        with Tag("div", "", "panel-body panel-flush" if flush else "panel-body"):
            yield aside


def empty(title: str, text: str) -> Tag:
    """What to show, and what to do next, where there is nothing yet; buttons may be put into it."""
    holder = Tag("div", "", "empty")
    with holder:
        Tag("p", title, "empty-title")
        if text:
            Tag("p", text, "muted")
    return holder


def tag_list(tags: Sequence[str]) -> Tag:
    """A node's tags."""
    holder = Tag("span", "", "line")
    holder.style("gap: 4px")
    with holder:
        for each in tags:
            Tag("span", f"#{each.removeprefix('#')}", "tag")
    return holder


def tell(text: str, *, fault: bool = False) -> None:
    """Say something at the bottom of the page for a few seconds."""
    ui.notify(
        text,
        position="bottom",
        timeout=8000 if fault else 3500,
        classes="toast toast-fault" if fault else "toast",
        close_button="Close" if fault else False,
    )


class Dialog(ui.dialog):
    """A titled dialog: `with Dialog("Add a node") as dialog: … with dialog.foot: …`; removed when it closes."""

    def __init__(self, title: str, *, wide: bool = False) -> None:
        super().__init__()
        self.props["aria-labelledby"] = f"{self.html_id}-title"
        with self, Tag("div", "", "dialog dialog-wide" if wide else "dialog"):
            with Tag("div", "", "dialog-head"):
                self.heading = Tag("h2", title, id=f"{self.html_id}-title")
                Button("Close", self.close, kind="plain", drawing="close", bare=True)
            self.body = Tag("div", "", "dialog-body")
            self.foot = Tag("div", "", "dialog-foot")
        self._closed: list[Handler] = []
        self.on("hide", self._hidden, [])

    def on_closed(self, handler: Handler) -> None:
        """Call `handler` when the dialog has been closed."""
        self._closed.append(handler)

    def _hidden(self) -> None:
        for handler in self._closed:
            handler()
        if not self.is_deleted:
            self.delete()


async def confirm(title: str, text: str, verb: str, *, danger: bool = True) -> bool:
    """Ask before something that cannot be taken back; True when the person said yes."""
    dialog = Dialog(title)
    with dialog.body:
        Tag("p", text)
    with dialog.foot:
        Button("Cancel", dialog.close)
        Button(verb, lambda: dialog.submit(True), kind="danger" if danger else "primary")
    return bool(await dialog)
