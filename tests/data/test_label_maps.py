"""Label maps as SemSegEvaluator wants them."""

import numpy as np
from PIL import Image

from wsbcn_d2.data.label_maps import read_label_map


def test_a_label_map_is_read_as_it_is_and_may_be_changed(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    read = read_label_map(str(tmp_path / "labels.png"), dtype=int)
    assert read.dtype == int and np.array_equal(read, labels)
    read[read == 5] = 255  # what SemSegEvaluator does with the ignored label
    assert read_label_map(str(tmp_path / "labels.png"))[1, 1] == 5
