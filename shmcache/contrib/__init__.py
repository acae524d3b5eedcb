"""Cache backends for frameworks: Django, cachelib and Flask-Caching, dogpile.cache, ASGI.

Place: level 6; one framework a file, which imports it only when it is used itself. What they have
in common, what becomes of an outage, is in `_connection.py`.
"""
