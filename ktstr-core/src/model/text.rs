//! Bounds the length of texts.

/// What takes the place of the end of a text that was cut.
pub(crate) const CUT_MARK: &str = " [...]";

/// Cuts a text after `length` bytes, and appends ` [...]`.
pub fn cut(text: &mut String, length: usize) {
    if text.len() > length {
        text.truncate(text.floor_char_boundary(length));
        text.push_str(CUT_MARK);
    }
}
