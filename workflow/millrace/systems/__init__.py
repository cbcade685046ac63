"""The systems: a folder for each field, with all that belongs to it alone.

`millrace.systems.registry` is where they are known by name, `millrace.systems.base` what each of them says
of itself in its `system.py`. Systems do not import each other.
"""
