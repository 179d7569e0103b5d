"""Reading and opening pages in Streamlit's test client."""


def text(app):
    """What stands on the page."""
    return " ".join(element.value for element in [*app.markdown, *app.info, *app.warning, *app.error, *app.caption])


def visit(app, page, **params):
    """Open a page, as from a link with these parameters."""
    app.run()
    app.query_params.update(params)
    app.switch_page(f"pages/{page}.py").run()
