"""WHO scores items: backbones, the policy, the catalogue and its softmax."""
