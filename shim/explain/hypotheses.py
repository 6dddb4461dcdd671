"""The suspected causes that ``shim causes`` tests: a table of questions with predictions made before measuring.

Predictions rest on counts of operations, bytes, steps and calls, and on rates that earlier comparisons gave on two
cores of an AMD EPYC: 70 (CNTK) to 180 (torch) billion operations a second in large products, 28 GB/s from memory,
0.2 ms for a call of a TensorFlow graph, 3 µs for one of torch, 45 µs for gradients by torch. On another machine a
prediction may fail. It is then ``refuted``, which is a result as well; entries that were refuted stay in the table.
"""

from __future__ import annotations

from shim.explain.causes import Cause

_LSTM = "lstm/forward/N32-T100-I128-H64/float32"
_CONV = "conv2d/forward/N32-H15-W15-C64-R3-S3-O64/float32"
_DENSE = "dense/forward/N256-I1024-O1024/float32"
_SMALL = "dense/forward/N32-I64-O16/float32"
_TABLE = "imdb_fasttext/train_step/N32-pairs=100000-optimizer=sgd{}/float32"

_ALL = (
    Cause(
        name="cntk-lstm-steps",
        question="Why is CNTK slower than TensorFlow on an LSTM?",
        hypothesis="each step of its recurrent loop costs a fixed time, whatever the batch",
        case=_LSTM,
        slow="cntk",
        fast="tensorflow",
        switch="the same products in a tenth of the steps, with ten times the batch",
        case_without="lstm/forward/N320-T10-I128-H64/float32",
        predicted=(1.1, 2.5),
        because="A step has 12 nodes of about 5 µs each: 90 steps less save 5 of CNTK's 17 ms, and TensorFlow, whose "
        "steps cost 15 kernels of 1 to 2 µs, saves a smaller share.",
    ),
    Cause(
        name="cntk-dense-mkl",
        question="Why is CNTK slower than torch on a large dense layer?",
        hypothesis="its MKL of 2018 runs code for the oldest CPUs where the vendor is not Intel",
        case=_DENSE,
        slow="cntk",
        fast="torch",
        switch="MKL told to take its code for AVX2",
        slow_without="cntk/mkl-avx2",
        predicted=(1.5, 3.0),
        because="128-bit multiplications and additions are 16 operations a cycle, 256-bit fused ones 32: twice the "
        "rate, more where the old code also blocks for small caches.",
    ),
    Cause(
        name="cntk-conv-mkl",
        question="Why is CNTK slower than TensorFlow on a convolution, as in 2017?",
        hypothesis="its MKL of 2018 runs code for the oldest CPUs where the vendor is not Intel",
        case=_CONV,
        slow="cntk",
        fast="tensorflow",
        switch="MKL told to take its code for AVX2",
        slow_without="cntk/mkl-avx2",
        predicted=(1.3, 4.0),
        because="Twice the rate as in a dense layer, less the transposes around it (5 to 20 %), more if MKL's "
        "convolutions have no code of their own for old CPUs.",
    ),
    Cause(
        name="tensorflow-conv-onednn",
        question="Why is CNTK slower than TensorFlow on a convolution, as in 2017?",
        hypothesis="TensorFlow convolves with oneDNN, which CNTK does not have",
        case=_CONV,
        slow="cntk",
        fast="tensorflow",
        switch="TensorFlow without oneDNN",
        fast_without="tensorflow/no-onednn",
        predicted=(1.1, 2.5),
        because="Eigen copies patches of 15 x 15 x 576 numbers a sample before it multiplies, 17 MB to write and "
        "read, about 1 ms beside 2 to 3 ms of products; oneDNN reads the image in place.",
    ),
    Cause(
        name="cntk-lstm-mkl",
        question="Why is CNTK slower than TensorFlow on an LSTM?",
        hypothesis="its MKL of 2018 runs code for the oldest CPUs where the vendor is not Intel",
        case=_LSTM,
        slow="cntk",
        fast="tensorflow",
        switch="MKL told to take its code for AVX2",
        slow_without="cntk/mkl-avx2",
        predicted=(1.05, 1.5),
        because="315 million operations at 70 billion a second are 4.5 of CNTK's 17 ms; at twice the rate 2 ms are "
        "saved.",
    ),
    Cause(
        name="cntk-cnn-mkl",
        question="Why is CNTK slower than TensorFlow on the large convolution of mnist_cnn, as in 2017?",
        hypothesis="MKL's convolutions have no fast code at all where the vendor is not Intel",
        case="conv2d/forward/N16-H26-W26-C32-R3-S3-O64/float32",
        slow="cntk",
        fast="tensorflow",
        switch="MKL told to take its code for AVX2",
        slow_without="cntk/mkl-avx2",
        predicted=(4.0, 20.0),
        because="A trial of one round on the layer of cntk-conv-mkl gave a factor of 10, which vectors of half the "
        "length do not explain; one number at a time is 8 to 16 times slower than AVX2 with two fused units.",
    ),
    Cause(
        name="cntk-lstm-gates",
        question="Why is CNTK slower than TensorFlow on an LSTM?",
        hypothesis="it is slow at the gates' sigmoids, sums and slices, hardly at the products",
        case=_LSTM,
        slow="cntk",
        fast="tensorflow",
        switch="eight times the width of the input, which makes the products larger and the gates not",
        case_without="lstm/forward/N32-T100-I1024-H64/float32",
        predicted=(1.3, 3.0),
        because="12 of CNTK's 17 ms and 1 of TensorFlow's 3 are no products. With 1.8 billion operations they are 12 "
        "of 37 and 1 of 13 ms, and the ratio falls from 5.4 to 2.9.",
    ),
    Cause(
        name="fasttext-table",
        question="Why is CNTK slower than TensorFlow on imdb_fasttext, as in 2017?",
        hypothesis="it lays out a dense gradient of the whole table, and moves all of the table, at every step",
        case=_TABLE.format(""),
        slow="cntk",
        fast="tensorflow",
        switch="descent on the rows in use alone (table_gradient=rows)",
        case_without=_TABLE.format("-table_gradient=rows"),
        predicted=(1.2, 6.0),
        because="The table has 24 MB. CNTK makes its dense gradient at about 1 GB/s and NumPy moves the weights in 4 "
        "passes: 30 ms; TensorFlow passes over it about 7 times at 20 GB/s: 8 ms. On rows it is about 2.5 "
        "against 1 ms.",
    ),
    Cause(
        name="tensorflow-call",
        question="Why is TensorFlow slower than torch on a small dense layer?",
        hypothesis="every call of a graph costs 0.2 ms, whatever is in it",
        case=_SMALL,
        slow="tensorflow",
        fast="torch",
        switch="the same layer on 512 times the batch",
        case_without="dense/forward/N16384-I64-O16/float32",
        predicted=(15.0, 80.0),
        because="0.2 ms against 3 µs is 60 times; with 34 million operations and 5 MB more, about 0.5 ms, it is 0.7 "
        "against 0.5 ms: 1.4 times.",
    ),
    Cause(
        name="tensorflow-wakeups",
        question="Why is TensorFlow slower than torch on a small dense layer?",
        hypothesis="its threads hand work on and wait, and half of a call is a CPU that wakes up",
        case=_SMALL,
        slow="tensorflow/cpus-sleep",
        fast="torch/cpus-sleep",
        switch="idle CPUs that are kept awake",
        slow_without="tensorflow",
        fast_without="torch",
        predicted=(1.3, 2.5),
        because="A trial on a layer of N32 I128 O1 gave TensorFlow 0.18 ms with CPUs that sleep and 0.10 ms without, "
        "torch 2.6 µs in both.",
    ),
    Cause(
        name="tensorflow-placement",
        question="Why is TensorFlow slower than torch at averaging vectors?",
        hypothesis="the system puts threads of its two pools on one CPU and leaves the other one idle",
        case="embedding/forward/N32-T100-V20000-D128/float32",
        slow="tensorflow/threads-move",
        fast="torch/threads-move",
        switch="threads that stay on CPUs of their own",
        slow_without="tensorflow",
        fast_without="torch",
        predicted=(1.1, 1.6),
        because="A trial gave TensorFlow 142 µs with threads that move and 107 µs without, torch 22 µs in both.",
    ),
    Cause(
        name="torch-gradients",
        question="Why is torch slower than NumPy on a small dense layer with gradients?",
        hypothesis="recording and replaying a call for its gradients costs a fixed time, not the arithmetic",
        case="dense/forward_backward/N32-I64-O16/float32",
        slow="torch",
        fast="numpy",
        switch="the same layer without gradients",
        case_without=_SMALL,
        predicted=(3.0, 8.0),
        because="About 50 µs with gradients against NumPy's 10, and 3 against 3 µs without.",
    ),
    Cause(
        name="numpy-threads",
        question="Why is NumPy slower than torch on a large rectifier?",
        hypothesis="NumPy computes what is no product in one thread, torch in all",
        case="relu/forward/N256-...4096/float32",
        slow="numpy",
        fast="torch",
        switch="torch with one thread",
        fast_without="torch/one-thread",
        predicted=(1.3, 2.1),
        because="One CPU of two takes twice as long where the data, 8 MB, come from the shared cache, and less than "
        "twice as far as both wait for memory.",
    ),
    Cause(
        name="cntk-lstm-threads",
        question="Why is CNTK slower than TensorFlow on a small LSTM?",
        hypothesis="its threads wait for one another in every node of every step",
        case="lstm/forward/N4-T50-I16-H16/float32",
        slow="cntk",
        fast="tensorflow",
        switch="CNTK with one thread",
        slow_without="cntk/one-thread",
        predicted=(1.1, 2.0),
        because="A barrier of two threads costs about 1 µs, a node of a step about 5 µs.",
    ),
    Cause(
        name="tensorflow-fusion",
        question="Why is TensorFlow slower than JAX on batch normalisation?",
        hypothesis="a graph runs kernel after kernel, each of which reads and writes the whole batch",
        case="batch_norm/forward/N4096-C256-training=True/float32",
        slow="tensorflow",
        fast="jax",
        switch="the same compiled by XLA, which fuses the kernels (mode xla)",
        slow_without="tensorflow:xla",
        predicted=(1.3, 4.0),
        because="About 8 kernels pass over 4 MB, fused they are 3; the fixed 0.2 ms of a call stay.",
    ),
    Cause(
        name="tensorflow-loop",
        question="Why was TensorFlow slower than CNTK on the LSTMs of 2017, and is slower than torch on long ones?",
        hypothesis="it runs them as a while loop, whose every turn costs a fixed time",
        case="lstm/forward/N16-T129-I32-H32/float32",
        slow="tensorflow",
        fast="torch",
        switch="a graph of unrolled steps, which the backend takes up to 128 steps",
        case_without="lstm/forward/N16-T128-I32-H32/float32",
        predicted=(1.3, 4.0),
        because="A step has about 15 kernels of 1 to 2 µs, a turn of the loop 20 to 30 more, which enter, merge, "
        "switch and count.",
    ),
    Cause(
        name="keras-step",
        question="Why does Keras on JAX train slower than JAX on small batches?",
        hypothesis="Keras adds a fixed time to each step",
        case="mnist_mlp/train_step/N8/float32",
        slow="keras-jax",
        fast="jax",
        switch="a batch of 256",
        case_without="mnist_mlp/train_step/N256/float32",
        predicted=(1.2, 4.0),
        because="About 1 ms of Python a step beside 1 ms of a batch of 8, which moves all weights, and 6 ms of one of "
        "256.",
    ),
)  # fmt: skip

CAUSES = {cause.name: cause for cause in _ALL}
