"Sphinx's settings; `docs/build.py` lays the pages out and calls it."

from importlib.metadata import version as _version

project = "tradenb"
author = "the tradenb developers"
version = release = _version("tradenb")

extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
root_doc = "index"
nb_execution_mode = "off"  # `docs/build.py` has run them, two at a time and as the tests run them
nb_merge_streams = True
myst_enable_extensions = ["attrs_inline", "colon_fence", "html_image"]
nb_code_prompt_show = "Imports"  # the only cells that are folded
nb_code_prompt_hide = "Imports"
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_theme = "pydata_sphinx_theme"
html_title = "tradenb"
html_static_path = ["docs/_static"]
html_css_files = ["tradenb.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # a browser that reads from disk may not fetch the pages for it
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "header_links_before_dropdown": 8,
    "show_toc_level": 2,
    "pygments_light_style": "default",
}
copyright = "the tradenb developers"
