"""FLOPs of the small encoders and heads, counted by hand as tests/learning/test_work.py says."""

BATCH = 16
HEAD = 6 * 32 * 10  # common or specific features (32) -> classes (10), 1,920
# Audio 1x32x16: both convolutions halve, to 16x8 and 8x4 pixels; pooled to 16 x 4x4 = 256; 64; 64.
AUDIO = 4 * 25 * 1 * 8 * 128 + 6 * (25 * 8 * 16 * 32 + 256 * 64 + 64 * 64)  # 839,680
# Image 1x8x8: the first convolution halves to 4x4 pixels, the second stays there.
IMAGE = 4 * 25 * 1 * 8 * 16 + 6 * (25 * 8 * 16 * 16 + 256 * 64 + 64 * 64)  # 442,880
# Forward only, 2n of every layer.
AUDIO_FORWARD = 2 * (25 * 1 * 8 * 128 + 25 * 8 * 16 * 32 + 256 * 64 + 64 * 64)  # 296,960
IMAGE_FORWARD = 2 * (25 * 1 * 8 * 16 + 25 * 8 * 16 * 16 + 256 * 64 + 64 * 64)  # 149,760
HEAD_FORWARD = 2 * 32 * 10  # 640
