"""What several test modules share: a cache of their own, and a tiny cohort of phantoms on disk."""

import numba
import pytest
import torch

from lsphantom.patients import write_cohort


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The cache folder of this test run; the user's own is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSBOOK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A LiTS folder of four phantom patients, 64 x 64 x 12 voxels of 6 x 6 x 12 mm."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4, shape=(64, 64, 12), spacing=(6.0, 6.0, 12.0))


@pytest.fixture(scope="module")
def one_thread():
    """Tiny tensors train faster on one thread, and sums in a fixed order give the same bits in every process."""
    threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(threads[0])
    numba.set_num_threads(threads[1])
