"""The demo: from real images to a proven slim ONNX file in one command, written as code to copy from.

`recipe.py` holds what one would change, `training.py` the three lines that graft.
"""
