"""Published weights: where they are, how to know them, and the score they must reproduce.

Scores are timm's, on the 50,000 validation pictures of ImageNet-1k with the preprocessing of `jeffnet.arch.zoo`
(huggingface/pytorch-image-models, results/results-imagenet.csv).
"""

from dataclasses import dataclass

RELEASE = "https://github.com/rwightman/efficientnet-jax/releases/download/weights/"


@dataclass(frozen=True)
class Pretrained:
    """One set of published weights.

    Attributes:
      timm: timm's name with its tag; the model hub has it as `timm/<name>`.
      sha256: first 8 digits of the hash of the original release's npz file.
      top1: per cent of ImageNet-1k's validation pictures whose first guess is right.
      top5: the same for one of the first five.
    """

    timm: str
    sha256: str
    top1: float
    top5: float

    @property
    def hub_id(self) -> str:
        """Repository on the model hub."""
        return f"timm/{self.timm}"


PRETRAINED = {
    "pt_efficientnet_b0": Pretrained("efficientnet_b0.ra_in1k", "d480c9de", 77.698, 93.538),
    "pt_efficientnet_b1": Pretrained("efficientnet_b1.ft_in1k", "44dd2799", 78.698, 94.144),
    "pt_efficientnet_b2": Pretrained("efficientnet_b2.ra_in1k", "3ab3711f", 80.392, 95.076),
    "pt_efficientnet_b3": Pretrained("efficientnet_b3.ra2_in1k", "2c86e358", 82.076, 96.02),
    "pt_efficientnet_em": Pretrained("efficientnet_em.ra2_in1k", "e36de59a", 79.256, 94.794),
    "pt_efficientnet_es": Pretrained("efficientnet_es.ra_in1k", "d7c5fd59", 78.1, 93.928),
    "pt_efficientnet_lite0": Pretrained("efficientnet_lite0.ra_in1k", "6115ce63", 75.488, 92.508),
    "pt_fbnetc_100": Pretrained("fbnetc_100.rmsp_in1k", "21618080", 75.12, 92.384),
    "pt_mixnet_l": Pretrained("mixnet_l.ft_in1k", "27554ae7", 78.97, 94.18),
    "pt_mixnet_m": Pretrained("mixnet_m.ft_in1k", "fbbd9e8a", 77.268, 93.418),
    "pt_mixnet_s": Pretrained("mixnet_s.ft_in1k", "1cf350a7", 76.0, 92.796),
    "pt_mixnet_xl": Pretrained("mixnet_xl.ra_in1k", "13d7aeef", 80.494, 94.938),
    "pt_mnasnet_100": Pretrained("mnasnet_100.rmsp_in1k", "3580d9fc", 74.672, 92.108),
    "pt_mobilenetv2_100": Pretrained("mobilenetv2_100.ra_in1k", "39fce4c0", 72.91, 91.0),
    "pt_mobilenetv2_110d": Pretrained("mobilenetv2_110d.ra_in1k", "fbaf9685", 75.056, 92.186),
    "pt_mobilenetv2_120d": Pretrained("mobilenetv2_120d.ra_in1k", "eaa01988", 77.3, 93.516),
    "pt_mobilenetv2_140": Pretrained("mobilenetv2_140.ra_in1k", "9b7c5e30", 76.528, 93.008),
    "pt_mobilenetv3_large_100": Pretrained("mobilenetv3_large_100.ra_in1k", "0e2a5d09", 75.784, 92.528),
    "pt_semnasnet_100": Pretrained("semnasnet_100.rmsp_in1k", "e8c37d5d", 75.452, 92.608),
    "pt_spnasnet_100": Pretrained("spnasnet_100.rmsp_in1k", "886fba67", 74.086, 91.826),
    "tf_efficientnet_b0": Pretrained("tf_efficientnet_b0.aa_in1k", "71d7115d", 76.882, 93.27),
    "tf_efficientnet_b0_ap": Pretrained("tf_efficientnet_b0.ap_in1k", "d860b743", 77.1, 93.258),
    "tf_efficientnet_b0_ns": Pretrained("tf_efficientnet_b0.ns_jft_in1k", "6f64c20c", 78.68, 94.372),
    "tf_efficientnet_b1": Pretrained("tf_efficientnet_b1.aa_in1k", "83ec238a", 78.84, 94.202),
    "tf_efficientnet_b1_ap": Pretrained("tf_efficientnet_b1.ap_in1k", "95cb042f", 79.288, 94.316),
    "tf_efficientnet_b1_ns": Pretrained("tf_efficientnet_b1.ns_jft_in1k", "9f8b5df2", 81.388, 95.756),
    "tf_efficientnet_b2": Pretrained("tf_efficientnet_b2.aa_in1k", "1d1f6c3a", 80.074, 94.906),
    "tf_efficientnet_b2_ap": Pretrained("tf_efficientnet_b2.ap_in1k", "c2e62974", 80.3, 95.032),
    "tf_efficientnet_b2_ns": Pretrained("tf_efficientnet_b2.ns_jft_in1k", "6729f09d", 82.412, 96.238),
    "tf_efficientnet_b3": Pretrained("tf_efficientnet_b3.aa_in1k", "2ac427e3", 81.648, 95.724),
    "tf_efficientnet_b3_ap": Pretrained("tf_efficientnet_b3.ap_in1k", "e62198e7", 81.842, 95.614),
    "tf_efficientnet_b3_ns": Pretrained("tf_efficientnet_b3.ns_jft_in1k", "b43b9f62", 84.054, 96.926),
    "tf_efficientnet_b4": Pretrained("tf_efficientnet_b4.aa_in1k", "716d81f1", 83.04, 96.298),
    "tf_efficientnet_b4_ap": Pretrained("tf_efficientnet_b4.ap_in1k", "e65a2ef8", 83.246, 96.392),
    "tf_efficientnet_b4_ns": Pretrained("tf_efficientnet_b4.ns_jft_in1k", "bfc84391", 85.156, 97.482),
    "tf_efficientnet_b5": Pretrained("tf_efficientnet_b5.ra_in1k", "6092c165", 83.834, 96.764),
    "tf_efficientnet_b5_ap": Pretrained("tf_efficientnet_b5.ap_in1k", "1924f949", 84.258, 96.984),
    "tf_efficientnet_b5_ns": Pretrained("tf_efficientnet_b5.ns_jft_in1k", "0dc1453c", 86.096, 97.744),
    "tf_efficientnet_b6": Pretrained("tf_efficientnet_b6.aa_in1k", "27e6732d", 84.124, 96.89),
    "tf_efficientnet_b6_ap": Pretrained("tf_efficientnet_b6.ap_in1k", "28daec82", 84.794, 97.138),
    "tf_efficientnet_b6_ns": Pretrained("tf_efficientnet_b6.ns_jft_in1k", "2f311b5f", 86.476, 97.864),
    "tf_efficientnet_b7": Pretrained("tf_efficientnet_b7.ra_in1k", "7bbc9e2b", 84.926, 97.22),
    "tf_efficientnet_b7_ap": Pretrained("tf_efficientnet_b7.ap_in1k", "c7218e34", 85.132, 97.256),
    "tf_efficientnet_b7_ns": Pretrained("tf_efficientnet_b7.ns_jft_in1k", "feca4a8a", 86.85, 98.08),
    "tf_efficientnet_b8": Pretrained("tf_efficientnet_b8.ra_in1k", "67bfcabf", 85.344, 97.392),
    "tf_efficientnet_b8_ap": Pretrained("tf_efficientnet_b8.ap_in1k", "afc6b624", 85.358, 97.298),
    "tf_efficientnet_el": Pretrained("tf_efficientnet_el.in1k", "02387067", 80.44, 95.164),
    "tf_efficientnet_em": Pretrained("tf_efficientnet_em.in1k", "21a4e831", 78.708, 94.314),
    "tf_efficientnet_es": Pretrained("tf_efficientnet_es.in1k", "6e146728", 77.258, 93.594),
    "tf_efficientnet_l2_ns": Pretrained("tf_efficientnet_l2.ns_jft_in1k", "7a2c14f2", 88.36, 98.656),
    "tf_efficientnet_l2_ns_475": Pretrained("tf_efficientnet_l2.ns_jft_in1k_475", "72254c39", 88.246, 98.554),
    "tf_efficientnet_lite0": Pretrained("tf_efficientnet_lite0.in1k", "49febd06", 74.846, 92.18),
    "tf_efficientnet_lite1": Pretrained("tf_efficientnet_lite1.in1k", "529d9b59", 76.674, 93.232),
    "tf_efficientnet_lite2": Pretrained("tf_efficientnet_lite2.in1k", "a185f6b2", 77.47, 93.756),
    "tf_efficientnet_lite3": Pretrained("tf_efficientnet_lite3.in1k", "df8fe453", 79.808, 94.908),
    "tf_efficientnet_lite4": Pretrained("tf_efficientnet_lite4.in1k", "615dfa42", 81.54, 95.668),
    "tf_mixnet_l": Pretrained("tf_mixnet_l.in1k", "49daedd5", 78.774, 94.0),
    "tf_mixnet_m": Pretrained("tf_mixnet_m.in1k", "3c049458", 76.952, 93.164),
    "tf_mixnet_s": Pretrained("tf_mixnet_s.in1k", "60afe3e1", 75.656, 92.632),
    "tf_mobilenetv3_large_075": Pretrained("tf_mobilenetv3_large_075.in1k", "86b186f9", 73.442, 91.332),
    "tf_mobilenetv3_large_100": Pretrained("tf_mobilenetv3_large_100.in1k", "4db08e68", 75.51, 92.6),
    "tf_mobilenetv3_large_minimal_100": Pretrained("tf_mobilenetv3_large_minimal_100.in1k", "bb99a4f0", 72.27, 90.664),
    "tf_mobilenetv3_small_075": Pretrained("tf_mobilenetv3_small_075.in1k", "bb7ad439", 65.706, 86.13),
    "tf_mobilenetv3_small_100": Pretrained("tf_mobilenetv3_small_100.in1k", "18a48cb4", 67.922, 87.686),
    "tf_mobilenetv3_small_minimal_100": Pretrained("tf_mobilenetv3_small_minimal_100.in1k", "666b8e3b", 62.892, 84.27),
}
