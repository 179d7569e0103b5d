"""IPTC's fields for generated images (Photo Metadata 2025.1) as an XMP packet."""

from typing import Any
from xml.sax.saxutils import escape

KEY = "XML:com.adobe.xmp"  # of the PNG's text chunk
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def xmp(parameters: dict[str, Any]) -> str:
    """The packet: that the image was generated, by which model, from which prompt.

    Args:
        parameters: of the generation, with the fingerprint of the "model".
    """
    fields = {
        "DigitalSourceType": GENERATED,
        "AISystemUsed": "dtrak",
        "AISystemVersionUsed": str(parameters.get("model") or ""),
        "AIPromptInformation": str(parameters.get("label") or ""),
    }
    values = {name: escape(_printable(value)) for name, value in fields.items() if value}
    told = [f"<Iptc4xmpExt:{name}>{value}</Iptc4xmpExt:{name}>" for name, value in values.items()]
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">{"".join(told)}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    )


def _printable(text: str) -> str:
    """Without control characters, which XML cannot hold."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
