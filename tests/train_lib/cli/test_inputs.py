"""--inputs: which files of a folder are images."""

import pytest

from input_pipeline.common.errors import SettingError
from train_lib.cli import inputs


def test_a_folder_is_searched_for_the_same_endings_as_a_data_set(tmp_path):
    """A class that was trained on .jfif files must also be found when its folder is predicted."""
    endings = ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif")
    wanted = [f"a/{ending}.{ending}" for ending in endings] + [f"b/{ending}.{ending.upper()}" for ending in endings]
    for name in (*wanted, "a/1.tif", "a/.hidden.png", "a/.b/1.png", "__MACOSX/a/1.png", "a/__MACOSX/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert inputs.list_images(str(tmp_path)) == sorted(str(tmp_path / name) for name in wanted)
    (tmp_path / "none").mkdir()
    with pytest.raises(SettingError, match="a folder without .png, .jpg, .jpeg, .jpe, .jfif, .webp, .bmp, .gif; give"):
        inputs.check_inputs(str(tmp_path / "none"))
