"""Parts of pages with widgets of their own: each is a function that a page calls."""
