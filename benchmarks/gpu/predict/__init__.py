"""A model of the times on a GPU, to be refuted by a measurement: nothing here was measured.

    python -m benchmarks.gpu.predict                      the table of an H200
    python -m benchmarks.gpu.predict --machine A100 --rows 4096 --width 2048 --vocab 128256

Products at the machine's rate for large ones, passes over the logits at its memory's, and a host
that launches: that is all the model knows. The floor of an op is its products, or its bytes, alone.
What is "as planned" has the tiles that the planner gives, and the times of its own, plainer model;
it is left out where the package is not installed.
"""
