//! The `/init` of a guest for measurements: prints one line, and then keeps a CPU busy.
//!
//! Linked statically (`-C target-feature=+crt-static`), it is the only file of the initramfs.

fn main() -> ! {
    println!("hello from user space");
    loop {
        std::hint::spin_loop();
    }
}
