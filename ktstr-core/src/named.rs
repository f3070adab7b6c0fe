//! Enums whose variants have names.

/// Defines an enum that is displayed as the name given for each variant.
macro_rules! named_enum {
    (
        $(#[$meta:meta])*
        pub enum $type:ident { $($(#[$doc:meta])* $variant:ident => $name:literal,)* }
    ) => {
        $(#[$meta])*
        pub enum $type {
            $($(#[$doc])* #[doc = concat!("Displayed as `", $name, "`.")] $variant,)*
        }

        impl $type {
            /// Returns the name that is displayed.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
