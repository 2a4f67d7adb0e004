"""The picture trainer: ImageNet after Goyal et al., and CIFAR-10."""
