"""End-to-end distillation: stand-ins and gates learn from the dense model, with the gates in the loop.

    text.py      what to train on: tokens by kind; windows drawn from them
    dense.py     the model in torch, its FFN blocks replaceable
    sample.py    the model's own text, many sequences at once, on a GPU
    stand_ins.py stand-ins and gates as parameters, quantisation as training sees it
    hold.py      the thresholds that a held rate would give
    adam.py      the optimiser: steps in proportion to what they change
    local.py     each stand-in by itself, from its block's inputs and outputs
    gates.py     gates that predict what their stand-ins do to the next tokens
    loss.py      the KL divergence over a large vocabulary, in pieces
    plan.py      how much of everything
    train.py     the stages in order, within a time
    state.py     the file that holds what is learnt, to go on from, here or on another machine

Called by calibrate.py; `python -m pyskip.calibration.distill` (__main__.py) trains on a machine that has torch,
transformers and gguf, and not pyskip's native library: docs/calibration.md. text.py and state.py need no torch, so
that what was trained elsewhere is measured without it.
"""
