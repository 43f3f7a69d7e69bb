//! Registers in memory: for tests and simulation. A restart forgets every grant, so the server
//! program never uses it.

#![forbid(unsafe_code)]

use super::{Store, StoreError};
use crate::register::{Claim, Outcome, Register, VMS_MAX, VmName};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryStore {
    registers: Mutex<BTreeMap<VmName, Register>>,
}

impl MemoryStore {
    fn registers(&self) -> MutexGuard<'_, BTreeMap<VmName, Register>> {
        // A register is replaced in one step, so a panic elsewhere leaves no half-made state.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError> {
        let mut registers = self.registers();
        let mut register = registers.get(vm).cloned().unwrap_or_default();
        let outcome = register.claim(claim);
        if outcome == Outcome::Granted {
            if !registers.contains_key(vm) && registers.len() >= VMS_MAX {
                return Err(StoreError::Full);
            }
            registers.insert(vm.clone(), register);
        }
        Ok(outcome)
    }

    fn read(&self, vm: &VmName) -> Result<Register, StoreError> {
        Ok(self.registers().get(vm).cloned().unwrap_or_default())
    }

    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError> {
        Ok(self
            .registers()
            .iter()
            .map(|(vm, register)| (vm.clone(), register.clone()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn conforms() {
        conformance::suite(MemoryStore::default);
    }
}
