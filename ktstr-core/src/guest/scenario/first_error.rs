//! Keeps the first error of actions that are all carried out.

use anyhow::{Error, Result};

/// Collects the results of actions that do not depend on each other's success, as in a teardown.
///
/// All actions are carried out; the first error is returned and later ones are logged. A chain of
/// `Result::and` does the same, but looks like `and_then`, which would skip the rest after an error.
#[derive(Debug, Default)]
#[must_use = "an error that is not returned is lost"]
pub(super) struct FirstError(Option<Error>);

impl FirstError {
    /// Keeps the error of an action that has been carried out, if it is the first.
    pub(super) fn keep<T, E: Into<Error>>(&mut self, result: Result<T, E>) {
        let Err(error) = result else { return };
        let error = error.into();
        match &self.0 {
            None => self.0 = Some(error),
            Some(first) => tracing::warn!("after `{first}`, this failed too: {error:#}"),
        }
    }

    pub(super) fn into_result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_error_is_returned_whatever_follows() {
        let mut errors = FirstError::default();
        errors.keep(Ok::<_, Error>(1));
        errors.keep(Err::<(), _>(std::io::Error::other("first")));
        errors.keep(Err::<(), _>(Error::msg("second")));
        errors.keep(Ok::<_, Error>(2));
        assert_eq!(errors.into_result().unwrap_err().to_string(), "first");
    }

    #[test]
    fn first_error_of_successes_is_none() {
        let mut errors = FirstError::default();
        errors.keep(Ok::<_, Error>(()));
        assert!(errors.into_result().is_ok());
    }
}
