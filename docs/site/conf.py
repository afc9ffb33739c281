"""Settings of Sphinx, which builds the site from the folder that assemble.py writes."""

project = "jaxllama"
extensions = ["myst_parser"]
myst_heading_anchors = 4  # `#some-heading`, as on GitHub
suppress_warnings = ["myst.header"]  # a page may begin below its first level
html_theme = "furo"
html_title = "jaxllama"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
