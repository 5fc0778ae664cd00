// The conversations, which outlive the page in the browser's own storage.

const PLACE = "griffin_jax.conversations";

export class Conversations {
  constructor() {
    let kept = null;
    try {
      kept = JSON.parse(localStorage.getItem(PLACE));
    } catch {
      // What is there is none of ours.
    }
    this.all = Array.isArray(kept?.all) ? kept.all : [];
    this.currentId = kept?.currentId ?? null;
  }

  get current() {
    return this.all.find((one) => one.id === this.currentId) ?? this.all[0] ?? null;
  }

  begin(kind, turns = [], name = null) {
    const title = name ?? (kind === "chat" ? "New chat" : "New text");
    const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
    const made = { id, kind, title, turns };
    this.all.unshift(made);
    this.choose(made.id);
    return made;
  }

  choose(id) {
    this.currentId = id;
    this.save();
  }

  // Another conversation with the same past, up to a turn and with it.
  fork(conversation, turn) {
    const turns = structuredClone(conversation.turns.slice(0, turn + 1));
    return this.begin(conversation.kind, turns, `${conversation.title} (fork)`);
  }

  remove(id) {
    this.all = this.all.filter((one) => one.id !== id);
    if (this.currentId === id) this.currentId = this.all[0]?.id ?? null;
    this.save();
  }

  save() {
    localStorage.setItem(PLACE, JSON.stringify({ all: this.all, currentId: this.currentId }));
  }
}
