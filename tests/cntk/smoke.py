"""Train a convolutional and a recurrent network for four steps and print their losses, one network a line.

Under CPython 3.6 with NumPy 1.19, the Python that CNTK 2.7 was built for, they are LOSSES.
"""

import cntk as C
import numpy as np
from cntk.layers import LSTM, Convolution2D, Dense, Dropout, Embedding, MaxPooling, Recurrence, Sequential

LOSSES = {
    "conv": ["2.390327215", "2.419730186", "2.423465014", "2.375855923"],
    "lstm": ["0.694882393", "0.692498505", "0.690277457", "0.688207746"],
}


def losses(output, loss, learner, feed):
    trainer = C.Trainer(output, (loss,), [learner])
    for _ in range(4):
        trainer.train_minibatch(feed)
        yield f"{trainer.previous_minibatch_loss_average:.9f}"


def conv():
    C.cntk_py.set_fixed_random_seed(1)
    images, labels = C.input_variable((1, 28, 28)), C.input_variable(10)
    layers = [
        Convolution2D((3, 3), 8, activation=C.relu),
        MaxPooling((2, 2), (2, 2)),
        Dropout(0.25),
        Dense(32, activation=C.relu),
        Dense(10),
    ]
    output = Sequential(layers)(images)
    loss = C.cross_entropy_with_softmax(output, labels)
    random = np.random.RandomState(0)
    feed = {images: random.rand(64, 1, 28, 28).astype(np.float32)}
    feed[labels] = np.eye(10, dtype=np.float32)[random.randint(0, 10, 64)]
    return losses(output, loss, C.adadelta(output.parameters, lr=1.0), feed)


def lstm():
    C.cntk_py.set_fixed_random_seed(1)
    words, label = C.sequence.input_variable(2000, is_sparse=True), C.input_variable(1)
    both = (Recurrence(LSTM(8)), Recurrence(LSTM(8), go_backwards=True))
    layers = [Embedding(16), both, C.splice, C.sequence.last, Dense(1, activation=C.sigmoid)]
    output = Sequential(layers)(words)
    loss = C.binary_cross_entropy(output, label)
    random = np.random.RandomState(0)
    ids = random.randint(0, 2000, (16, 20))
    feed = {words: C.Value.one_hot(ids.tolist(), 2000), label: random.randint(0, 2, (16, 1)).astype(np.float32)}
    return losses(output, loss, C.sgd(output.parameters, lr=0.1), feed)


if __name__ == "__main__":
    print(*conv())
    print(*lstm())
