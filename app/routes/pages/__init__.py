"""The pages, one module each. The variables of a page's template are a dataclass."""
