"""The web server: pages, REST API, SQLite index. Never imports torch."""
