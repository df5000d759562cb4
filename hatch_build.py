"""What the wheel holds beside the package: the collection, laid out as in a clone."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# what the README and the notebooks link to, which `handgrad site` and `handgrad lab` read
COLLECTION = ["*.md", "LICENSE", "assets/*.svg", "notebooks/*.ipynb", "src/handgrad/layers/*.py"]


class Collection(BuildHookInterface):
    """Adds it to a wheel, but not to an editable install, which has the clone."""

    def initialize(self, version, build_data):
        """Copy the collection, since a file has one place in the wheel, and a module its own."""
        if version == "editable":
            return
        root, self.copy = Path(self.root), TemporaryDirectory()
        for path in [path for pattern in COLLECTION for path in root.glob(pattern)]:
            place = Path(self.copy.name, path.relative_to(root))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        build_data["force_include"][self.copy.name] = "handgrad/_collection"
