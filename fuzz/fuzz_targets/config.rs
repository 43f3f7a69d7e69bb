//! Any text as a configuration file: an error has a problem and a remedy, a configuration is in range.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match vmm::config::parse(text, Path::new("/etc/understudy/guest.toml")) {
        Ok(config) => assert!(config.vm.mac[0] & 1 == 0 && config.vm.kernel.is_absolute()),
        Err(error) => assert!(!error.problem.is_empty() && !error.remedy.is_empty()),
    }
});
