"""Fields of a running ICON: a ComIn plug-in writes chunks, a watcher makes output files of them.

The plug-in knows nothing of training, and the training nothing of ICON's memory: between them are files
that are whole or not there.
"""
