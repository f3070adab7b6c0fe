//! ACPI Machine Language, the part that [`dsdt`](super::dsdt) uses.
//!
//! Source: ACPI 6.5, 20.2 ("AML Grammar Definition").

/// Encodes an integer in its shortest form (20.2.3).
pub(super) fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    match value {
        0 | 1 => vec![bytes[0]],
        2..=0xff => [&[0x0a], &bytes[..1]].concat(),
        0x100..=0xffff => [&[0x0b], &bytes[..2]].concat(),
        _ => [&[0x0c], &bytes[..]].concat(),
    }
}

/// Encodes a device's Plug and Play ID, such as `PNP0A03`, like the operator `EisaId` (19.6.36): as
/// an integer of three letters of five bits and four hexadecimal digits, the highest byte first.
pub(super) fn eisa_id(id: &[u8; 7]) -> Vec<u8> {
    let letters = id[..3].iter().fold(0u32, |sum, letter| sum << 5 | u32::from(letter & 0x1f));
    let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or_default();
    let number = id[3..].iter().fold(0u32, |sum, byte| sum << 4 | digit(byte));
    integer((letters << 16 | number).swap_bytes())
}

/// Encodes `Name (path, value)` (20.2.5.1).
pub(super) fn name(path: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[0x08], &path[..], value].concat()
}

/// Encodes `Scope (path) { terms }` (20.2.5.1).
pub(super) fn scope(path: &[u8; 4], terms: &[Vec<u8>]) -> Vec<u8> {
    [&[0x10][..], &sized(&[&path[..], &terms.concat()].concat())].concat()
}

/// Encodes `Device (path) { terms }` (20.2.5.2).
pub(super) fn device(path: &[u8; 4], terms: &[Vec<u8>]) -> Vec<u8> {
    [&[0x5b, 0x82][..], &sized(&[&path[..], &terms.concat()].concat())].concat()
}

/// Encodes `Package () { elements }` (20.2.5.4).
pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    [&[0x12][..], &sized(&[&[elements.len() as u8], &elements.concat()[..]].concat())].concat()
}

/// Encodes `Buffer () { bytes }` (20.2.5.4).
pub(super) fn buffer(bytes: &[u8]) -> Vec<u8> {
    [&[0x11][..], &sized(&[&integer(bytes.len() as u32), bytes].concat())].concat()
}

/// Puts `PkgLength` before `content` (20.2.4). It includes its own one to four bytes.
fn sized(content: &[u8]) -> Vec<u8> {
    // A single byte has a length of six bits. Of several, the first has the low four bits, and the
    // number of the others.
    let mut bytes = content.len() + 1;
    if bytes < 1 << 6 {
        return [&[bytes as u8], content].concat();
    }
    let more = (1..3).find(|more| content.len() + 1 + more < 1 << (4 + 8 * more)).unwrap_or(3);
    bytes += more;
    let mut length = vec![(more << 6 | bytes & 0xf) as u8];
    length.extend_from_slice(&(bytes >> 4).to_le_bytes()[..more]);
    [&length, content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_uses_the_shortest_form() {
        for (value, want) in [
            (0, &[0x00][..]),
            (1, &[0x01]),
            (2, &[0x0a, 2]),
            (0xff, &[0x0a, 0xff]),
            (0x100, &[0x0b, 0x00, 0x01]),
            (0x1234_5678, &[0x0c, 0x78, 0x56, 0x34, 0x12]),
        ] {
            assert_eq!(integer(value), want, "{value:#x}");
        }
    }

    #[test]
    fn eisa_id_matches_the_specification() {
        // The example of ACPI 6.5, 19.3.4: EISAID ("PNP0C09") is 0x090CD041.
        assert_eq!(eisa_id(b"PNP0C09"), integer(0x090c_d041));
        assert_eq!(eisa_id(b"PNP0A03"), integer(0x030a_d041));
        assert_eq!(eisa_id(b"PNP0501"), integer(0x0105_d041));
    }

    #[test]
    fn sized_includes_its_own_bytes() {
        for (content, want) in [
            (0, &[1][..]),
            (62, &[63]),
            (63, &[0x41, 0x04]),
            (0xffd, &[0x4f, 0xff]),
            (0xffe, &[0x81, 0x00, 0x01]),
            (0xf_fffc, &[0x8f, 0xff, 0xff]),
            (0xf_fffd, &[0xc1, 0x00, 0x00, 0x01]),
        ] {
            let bytes = sized(&vec![0; content]);
            assert_eq!(&bytes[..want.len()], want, "{content:#x}");
            assert_eq!(bytes.len(), content + want.len());
        }
    }
}
