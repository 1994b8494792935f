//! The judge, traces, and the external checker's format.

mod casemate;
mod corpus;
mod documentation;
mod forgetting;
mod garbage;
mod interrupts;
mod on_the_machine;
mod ownership;
mod rules;
mod runs;
mod scenario;
mod shapes;
mod stories;
