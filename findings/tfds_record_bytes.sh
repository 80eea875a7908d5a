#!/usr/bin/env bash
# TFDS: the same builder, data and versions write other bytes in every process as soon as examples have several features.
# An example is a protobuf map, and TFDS serializes it as it comes (no `deterministic=True`); its order in protobuf 6
# depends on the process, whatever PYTHONHASHSEED says. One feature: the same bytes. A checksum of the files of a data
# set so says nothing of its content.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 array-record==0.8.6 protobuf==6.33.6 importlib-resources==6.5.2
cd "$folder"
cat > make.py <<'PY'
import hashlib
import sys
from pathlib import Path

import tensorflow_datasets as tfds

names = sys.argv[2:]


class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}

    def _info(self):
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((number, {name: f"{name} {number}" for name in names}) for number in range(20))


builder = Small(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare(download_dir=Path(sys.argv[1], "downloads"))
(path,) = Path(builder.data_dir).glob("*.array_record*")
print(hashlib.sha256(path.read_bytes()).hexdigest())
PY
count() {  # distinct files of six processes
  for number in 1 2 3 4 5 6; do
    PYTHONHASHSEED=0 "$folder/venv/bin/python" make.py "$folder/$#-$number" "$@" 2> /dev/null | tail -n 1
  done | sort -u | wc -l
}
one=$(count text)
four=$(count text title date author)
"$folder/venv/bin/pip" list 2> /dev/null | grep -E "^(tensorflow-datasets|array_record|protobuf) "
echo "distinct files of six processes: $one with one feature, $four with four"
[ "$one" -eq 1 ] && [ "$four" -gt 1 ]
