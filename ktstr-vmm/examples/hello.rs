//! The `/init` of a guest that is only measured: says one line, and keeps a CPU busy from then on.
//!
//! Linked statically (`-C target-feature=+crt-static`), it is all that an initramfs needs.

fn main() -> ! {
    println!("hello from user space");
    loop {
        std::hint::spin_loop();
    }
}
