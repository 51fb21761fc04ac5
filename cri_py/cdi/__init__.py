"""Container Device Interface: files in which vendors say what a container needs to use their devices.

``documents`` reads one file and ``edits`` are what is asked for, both pure; ``registry`` knows the node's files.
Source: CNCF tag-runtime, CDI SPEC.md 1.1.0.
"""
