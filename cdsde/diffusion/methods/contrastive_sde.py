r"""Contrastive-SDE (arXiv 2510.03821): keeps the source's domain-invariant features.

    E(y, x_t, t) = -λ sim(E(y, t), E(x_t, t)) + λ_i ‖φ(y) - φ(x_t)‖² + λ_d E_d(y, t)

with the contrastive encoder E. The second term is EGSDE's content energy. The contrast of domains
E_d (energies.py, equation 5) leads from the source domain's mean features to the target's; it is
specific to this project, and present where `domain_images` is above 0. With λ_c > 0 the predicted
noise is that of the contrast of score networks (score_contrast.py).
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, Term, itself, start_setting


def terms(settings) -> tuple[Term, ...]:
    """The terms of the energy, in the order of the equation."""
    from cdsde.diffusion import energies

    def contrastive(networks):
        def encode(x, i):
            return networks["encoder"](x, i, space=settings.space)

        if settings.similarity == "nce":
            return energies.patch_contrast(encode, settings.temperature, settings.clean)
        return energies.contrastive(encode, settings.clean)

    def encoded(networks, x0):
        return networks["encoder"](x0, 0.0, space=settings.space)

    def content(networks):
        return energies.content(settings.factor, "neg_l2")

    def domains(networks):
        def features(x, i):
            return networks["encoder"](x, i, space="features")

        return energies.domain_contrast(features, networks["domain_direction"])

    near = Term(contrastive, settings.weight)
    if settings.clean:
        near = near._replace(view=encoded, reference=itself)
    parts = [near, Term(content, settings.content_weight, quadratic=True)]
    if settings.domain_images:
        parts.append(Term(domains, settings.domain_weight))
    return tuple(parts)


def check(settings, config) -> None:
    """Checks that "nce" has positions to compare and that the contrast of domains has images.

    Raises:
      ValueError: a setting does not fit the others or the encoder.
    """
    pooled = config.encoder.pool != "none" and settings.space != "features"
    if settings.similarity == "nce" and pooled:
        raise ValueError(
            "config.contrastive_sde.similarity is 'nce', which compares positions; it needs "
            "config.contrastive_sde.space=features or an encoder with config.encoder.pool=none"
        )
    if settings.domain_weight and not settings.domain_images:
        raise ValueError(
            f"config.contrastive_sde.domain_weight is {settings.domain_weight} and "
            "domain_images 0, so there are no domains to contrast; set domain_images to 128, for "
            "example, or the weight to 0"
        )
    if settings.score_weight and config.sample.variance == "learned":
        raise ValueError(
            f"config.contrastive_sde.score_weight is {settings.score_weight}, which compares "
            "noises, and config.sample.variance 'learned'; set it to fixedsmall, or the weight to 0"
        )


CONTRASTIVE_SDE = Method(
    name="contrastive_sde",
    title="Contrastive-SDE",
    networks=lambda settings: (
        ("score", "encoder", "source_score") if settings.score_weight else ("score", "encoder")
    ),
    settings={
        "start": start_setting(500),
        "weight": Setting(
            500.0,
            "λ of the contrastive energy.",
            minimum=0,
            changeable=True,
            slider="λ, encoder's space",
        ),
        "space": Setting(
            "embedding",
            "Encoder output that is compared: the embedding after the projection head, the vector "
            "before it, or the last feature map.",
            choices=("embedding", "hidden", "features"),
        ),
        "similarity": Setting(
            "cosine",
            "Comparison of the encoder's outputs: their cosine, or a contrast of the positions of "
            "a map with each other (`nce`).",
            ("cosine", "nce"),
        ),
        "temperature": Setting(0.07, "τ of `similarity=nce`.", minimum=1e-4),
        "clean": Setting(
            False,
            "Compare with the source itself; else with the source perturbed to the same level. For "
            "an encoder that was trained with `train.encoder.clean`.",
        ),
        "content_weight": Setting(
            2.0,
            "λ_i of the content energy; 0 switches it off.",
            minimum=0,
            changeable=True,
            slider="λ_i, low frequencies",
        ),
        "factor": Setting(32, "Factor N of the content energy's low-pass.", minimum=1),
        "domain_images": Setting(
            0,
            "Number of training images per domain from which the contrast of domains computes the "
            "mean features; 0 switches the contrast off.",
            minimum=0,
        ),
        "domain_weight": Setting(
            0.0,
            "λ_d of the contrast of domains, an energy that falls by 1 from the source domain's "
            "mean features to the target's.",
            minimum=0,
            changeable=True,
            slider="λ_d, towards the target",
        ),
        "score_weight": Setting(
            0.0,
            "λ_c of the contrast of score networks, which needs that of the source domain, too, "
            "and leads away from it; 0 switches it off.",
            minimum=0,
            changeable=True,
            slider="λ_c, away from the source's network",
        ),
    },
    contrast=lambda settings: settings.score_weight,
    terms=terms,
    domain_images=lambda settings: settings.domain_images,
    check=check,
)
