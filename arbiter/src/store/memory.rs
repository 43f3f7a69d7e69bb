//! Registers in memory: for tests and simulation. A restart forgets every grant, so the server
//! program never uses it.

#![forbid(unsafe_code)]

use super::{Store, StoreError};
use crate::register::{Claim, HISTORY_MAX, Outcome, Register, VMS_MAX, VmName};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default, Clone)]
struct Cell {
    register: Register,
    grants: VecDeque<Claim>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryStore {
    registers: Mutex<BTreeMap<VmName, Cell>>,
}

impl MemoryStore {
    fn registers(&self) -> MutexGuard<'_, BTreeMap<VmName, Cell>> {
        // A register is replaced in one step, so a panic elsewhere leaves no half-made state.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn claim(&self, vm: &VmName, claim: &Claim) -> Result<Outcome, StoreError> {
        let mut registers = self.registers();
        let mut cell = registers.get(vm).cloned().unwrap_or_default();
        let before = cell.register.clone();
        let outcome = cell.register.claim(claim);
        if cell.register != before {
            if !registers.contains_key(vm) && registers.len() >= VMS_MAX {
                return Err(StoreError::Full);
            }
            cell.grants.push_back(claim.clone());
            if cell.grants.len() > HISTORY_MAX {
                cell.grants.pop_front();
            }
            registers.insert(vm.clone(), cell);
        }
        Ok(outcome)
    }

    fn read(&self, vm: &VmName) -> Result<Register, StoreError> {
        let cell = self.registers().get(vm).cloned();
        Ok(cell.unwrap_or_default().register)
    }

    fn list(&self) -> Result<Vec<(VmName, Register)>, StoreError> {
        Ok(self
            .registers()
            .iter()
            .map(|(vm, cell)| (vm.clone(), cell.register.clone()))
            .collect())
    }

    fn history(&self, vm: &VmName) -> Result<Vec<Claim>, StoreError> {
        let cell = self.registers().get(vm).cloned();
        Ok(cell.unwrap_or_default().grants.into())
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
