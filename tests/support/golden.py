"""What was published of the family."""

# Learnable parameters in train and deploy form, and their MACs in G at 224x224; from running the authors' definitions.
GOLDEN = {
    "repvgg_a0": (9_108_968, 8_309_384, 1.513, 1.361),
    "repvgg_a1": (14_092_264, 12_789_864, 2.626, 2.364),
    "repvgg_a2": (28_210_600, 25_499_944, 5.685, 5.117),
    "repvgg_b0": (15_817_960, 14_339_048, 3.397, 3.058),
    "repvgg_b1": (57_415_016, 51_829_480, 13.128, 11.815),
    "repvgg_b1g2": (45_782_376, 41_360_104, 9.788, 8.810),
    "repvgg_b1g4": (39_966_056, 36_125_416, 8.119, 7.307),
    "repvgg_b2": (89_022_376, 80_315_112, 20.418, 18.377),
    "repvgg_b2g2": (70_846_376, 63_956_712, 15.200, 13.680),
    "repvgg_b2g4": (61_758_376, 55_777_512, 12.591, 11.332),
    "repvgg_b3": (123_085_288, 110_960_872, 29.121, 26.209),
    "repvgg_b3g2": (96_911_848, 87_404_776, 21.606, 19.446),
    "repvgg_b3g4": (83_825_128, 75_626_728, 17.849, 16.064),
    "repvgg_d2se": (133_334_836, 120_387_572, 36.477, 32.830),
    "repvggplus_l2pse": (146_062_864, 127_151_960, 37.027, None),
}

# Top-1 and top-5 of the released weights at 224x224 (RepVGGplus: 320x320, no top-5); None: not published.
ACCURACY = {
    **{"repvgg_a0": (72.41, 90.50), "repvgg_a1": (74.47, 91.85), "repvgg_a2": (76.48, 93.01)},
    **{"repvgg_b0": (75.14, 92.42), "repvgg_b1": (78.37, 94.11), "repvgg_b1g2": (77.79, 93.88)},
    **{"repvgg_b1g4": (77.58, 93.84), "repvgg_b2": (78.78, 94.42), "repvgg_b2g2": None, "repvgg_b2g4": (79.38, 94.68)},
    **{"repvgg_b3": (80.52, 95.26), "repvgg_b3g2": None, "repvgg_b3g4": (80.22, 95.10)},
    **{"repvgg_d2se": (81.81, 95.94), "repvggplus_l2pse": (84.06,)},
    **{"mindcv/repvgg_a0": (72.19, 90.75), "mindcv/repvgg_a1": (74.19, 91.89), "mindcv/repvgg_a2": (76.63, 93.42)},
    **{"mindcv/repvgg_b0": (74.99, 92.40), "mindcv/repvgg_b1": (78.81, 94.37), "mindcv/repvgg_b1g2": (78.03, 94.09)},
    **{"mindcv/repvgg_b1g4": (77.64, 94.03), "mindcv/repvgg_b2": (79.29, 94.66), "mindcv/repvgg_b2g4": (78.80, 94.36)},
    "mindcv/repvgg_b3": (80.46, 95.34),
    # QARepVGG: the paper's, and the authors' log; None here: the paper has them.
    **dict.fromkeys(f"qarepvgg_{size}" for size in ("a1", "a2", "b1", "b1g4", "b2", "b2g4")),
    **{"qarepvgg_a0": (72.2,), "qarepvgg_b0": (74.84,)},
    **{"repopt_vgg_b1": (78.62,), "repopt_vgg_b2": (79.68,), "repopt_vgg_l1": (79.82,), "repopt_vgg_l2": (80.47,)},
}

FAMILY = list(GOLDEN)

# The same, without MACs, of QARepVGG, which is RepVGG in deploy form, of RepOpt-VGG and of MobileOne.
OTHER_GOLDEN = {
    **{
        f"qarepvgg_{size}": (train, GOLDEN[f"repvgg_{size}"][1])
        for size, train in (
            *(("a0", 9_103_304), ("a1", 14_084_712), ("a2", 28_199_272), ("b0", 15_808_616), ("b1", 57_396_328)),
            *(("b1g4", 39_947_368), ("b2", 88_999_016), ("b2g4", 61_735_016)),
        )
    },
    # One convolution a block in both forms, with a BN in training.
    "repopt_vgg_b1": (51_841_832, 51_829_480),
    "repopt_vgg_b2": (80_330_536, 80_315_112),
    "repopt_vgg_l1": (76_037_928, 76_018_920),
    "repopt_vgg_l2": (118_132_776, 118_109_032),
    "mobileone_s0": (5_293_272, 2_078_504),
    "mobileone_s1": (4_825_192, 4_764_840),
    "mobileone_s2": (7_884_648, 7_808_168),
    "mobileone_s3": (10_170_600, 10_078_312),
    "mobileone_s4": (14_951_248, 14_838_352),
}

# MACs of MobileOne's deploy form in G at 224x224, as published, to two places (some are rounded, some are cut).
MOBILEONE_MACS = dict(zip((f"mobileone_s{i}" for i in range(5)), (0.27, 0.82, 1.30, 1.89, 2.98), strict=True))
