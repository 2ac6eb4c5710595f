#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Whether it decodes does not matter, that it comes back does.
    let _ = bodies::request::decode_frame(bytes);
});
