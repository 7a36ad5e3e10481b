import pytest

from fastssl import extension


@pytest.mark.native
def test_a_binary_of_other_sources_is_told_from_a_good_one():
    with pytest.raises(RuntimeError, match=r"has no operator fastssl::of_tomorrow\. Build it again"):
        extension._register("fastssl::of_tomorrow", lambda: None)
