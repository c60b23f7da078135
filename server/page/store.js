// Conversations in the browser's own database. They are never sent anywhere but to the model.
//
// IndexedDB and not localStorage: replies with the alternatives of every token soon exceed its 5 MB. The list
// is read from an index, without the turns. Where a browser has no database (some have none in a private
// window), conversations live as long as the page, and the user is told.

const DATABASE = "distaff";
const TABLE = "conversations";
const LISTED = "listed";

export class Store {
  #onFailure;
  #opened;
  #unsaved = new Map();

  /** @param {(error: Error) => void} onFailure a conversation cannot be written. */
  constructor(onFailure) {
    this.#onFailure = onFailure;
    this.#opened = open().catch(() => null);
  }

  /** `{id, title}` of all conversations, the last changed one first. */
  async list() {
    const database = await this.#opened;
    const unsaved = [...this.#unsaved.values()].reverse();
    return [...unsaved, ...(database ? await listed(database) : [])];
  }

  /** The conversation with this id. */
  async get(id) {
    return this.#unsaved.get(id) ?? this.#run("readonly", (table) => table.get(id));
  }

  /** Writes a conversation, in place of what has its id. */
  async save(conversation) {
    try {
      await this.#run("readwrite", (table) => table.put(conversation));
    } catch (error) {
      if (!this.#unsaved.has(conversation.id)) this.#onFailure(error);
      this.#unsaved.set(conversation.id, conversation);
    }
  }

  /** Removes a conversation. */
  async remove(id) {
    if (!this.#unsaved.delete(id)) await this.#run("readwrite", (table) => table.delete(id));
  }

  async #run(mode, operate) {
    const database = await this.#opened;
    if (!database) throw new Error("this browser has no database for this page");
    return result(operate(database.transaction(TABLE, mode).objectStore(TABLE)));
  }
}

async function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(TABLE, { keyPath: "id" }).createIndex(LISTED, ["changed", "title"]);
  };
  return result(request);
}

/** The index from its end. Its keys have all that the list shows, so no conversation is read. */
function listed(database) {
  const request = database.transaction(TABLE).objectStore(TABLE).index(LISTED).openKeyCursor(null, "prev");
  const found = [];
  return new Promise((resolve, reject) => {
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor) return resolve(found);
      found.push({ id: cursor.primaryKey, title: cursor.key[1] });
      cursor.continue();
    };
  });
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
