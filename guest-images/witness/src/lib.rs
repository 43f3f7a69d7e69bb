//! Guest-side protocol of the witness service.
