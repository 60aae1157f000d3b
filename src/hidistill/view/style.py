"""Looks and keys of the page, from the files beside this one."""

from importlib.resources import files

CSS = files("hidistill.view").joinpath("page.css").read_text(encoding="utf-8")
HEAD = f"<script>{files('hidistill.view').joinpath('keys.js').read_text(encoding='utf-8')}</script>"
