//! `Memo`: a planner's last inputs and outputs, so that it computes again only what differs.
//!
//! Law, tested for every planner: `plan(memo, world) == plan(empty, world)`.

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// One output a key of one input map, under a small context on which all of them depend.
pub struct Memo<K: Ord, V, C, Out> {
    inputs: OrdMap<K, V>,
    context: Option<C>,
    outputs: OrdMap<K, Out>,
}

impl<K: Ord, V, C, Out> Default for Memo<K, V, C, Out> {
    fn default() -> Self {
        Memo { inputs: OrdMap::new(), context: None, outputs: OrdMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq, C: PartialEq, Out: Clone> Memo<K, V, C, Out> {
    /// Brings the outputs up to date: keys whose input differs from last time, or all of them when the context does.
    /// `changed` is told the key, the output before and the output after.
    pub fn update(
        &mut self,
        inputs: &OrdMap<K, V>,
        context: C,
        compute: impl Fn(&C, &K, &V) -> Out,
        mut changed: impl FnMut(&K, Option<&Out>, Option<&Out>),
    ) {
        if self.context.as_ref() != Some(&context) {
            for (key, out) in &self.outputs {
                if !inputs.contains_key(key) {
                    changed(key, Some(out), None);
                }
            }
            let outputs: OrdMap<K, Out> =
                inputs.iter().map(|(key, value)| (key.clone(), compute(&context, key, value))).collect();
            for (key, out) in &outputs {
                changed(key, self.outputs.get(key), Some(out));
            }
            self.outputs = outputs;
        } else {
            for item in self.inputs.diff(inputs) {
                match item {
                    DiffItem::Add(key, value) | DiffItem::Update { new: (key, value), .. } => {
                        let out = compute(&context, key, value);
                        changed(key, self.outputs.get(key), Some(&out));
                        self.outputs.insert(key.clone(), out);
                    }
                    DiffItem::Remove(key, _) => {
                        if let Some(out) = self.outputs.remove(key) {
                            changed(key, Some(&out), None);
                        }
                    }
                }
            }
        }
        self.inputs = inputs.clone();
        self.context = Some(context);
    }

    /// The outputs, by key.
    pub fn outputs(&self) -> &OrdMap<K, Out> {
        &self.outputs
    }
}
