r"""Contrastive-SDE (arXiv 2510.03821): near to the source in a domain-invariant space.

    E(y, x_t, t) = -λ sim(E(y, t), E(x_t, t)) + λ_i ‖φ(y) - φ(x_t)‖² + λ_d E_d(y, t)

with the contrastive encoder E. The second term is EGSDE's content energy. The third is this
project's: E_d is the contrast of domains, energies.py equation (5), which leads from the source
domain's mean features to the target's; it is left out unless `domain_images` is set.
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, Term, start_setting


def terms(settings) -> tuple[Term, ...]:
    """The three terms, in the order of the equation."""
    from cdsde.diffusion import energies

    def contrastive(networks):
        def encode(x, i):
            return networks["encoder"](x, i, space=settings.space)

        if settings.similarity == "nce":
            return energies.patch_contrast(encode, settings.temperature)
        return energies.contrastive(encode)

    def content(networks):
        return energies.content(settings.factor, "neg_l2")

    def domains(networks):
        def features(x, i):
            return networks["encoder"](x, i, space="features")

        return energies.domain_contrast(features, networks["domain_direction"])

    parts = [
        Term(contrastive, settings.weight),
        Term(content, settings.content_weight, quadratic=True),
    ]
    if settings.domain_images:
        parts.append(Term(domains, settings.domain_weight))
    return tuple(parts)


CONTRASTIVE_SDE = Method(
    name="contrastive_sde",
    title="Contrastive-SDE",
    networks=("score", "encoder"),
    settings={
        "start": start_setting(500),
        "weight": Setting(
            500.0, "λ of the contrastive energy.", changeable=True, slider="λ, encoder's space"
        ),
        "space": Setting(
            "embedding",
            "Where the encoder compares: after its head, before it, or its last feature map.",
            choices=("embedding", "hidden", "features"),
        ),
        "similarity": Setting(
            "cosine", "`nce` contrasts the positions of a map with each other.", ("cosine", "nce")
        ),
        "temperature": Setting(0.07, "τ of `similarity=nce`.", minimum=1e-4),
        "content_weight": Setting(
            2.0,
            "λ_i of the content energy; 0: none.",
            changeable=True,
            slider="λ_i, low frequencies",
        ),
        "factor": Setting(32, "N of the content energy's low-pass.", minimum=1),
        "domain_images": Setting(
            0,
            "Training images of each domain whose mean features the contrast of domains compares; "
            "0: no contrast of domains.",
            minimum=0,
        ),
        "domain_weight": Setting(
            0.0,
            "λ_d of the contrast of domains. From one domain's mean to the other's its energy "
            "falls by 1.",
            changeable=True,
            slider="λ_d, towards the target",
        ),
    },
    terms=terms,
    domain_images=lambda settings: settings.domain_images,
)
