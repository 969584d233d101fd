"""What MindSpore calls the parameters of a BN. Loads no MindSpore."""

BN_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
