"""Settings of every test: no plugin library is found unless a test says so, whatever this user has built."""

import os

os.environ["ONNX_FUSE_PLUGINS"] = ""
