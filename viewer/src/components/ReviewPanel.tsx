import type { ViewerState } from "../state";

/** Accept or reject an image, with a note and tags. Keys: A, R, N, T, U. */
export function ReviewPanel({ state, index, onDecide }: { state: ViewerState; index: number; onDecide: (decision: "accept" | "reject") => void }) {
  const review = state.review(index);
  const leave = (event: KeyboardEvent): void => {
    if (event.key === "Escape" || (event.key === "Enter" && (event.target as HTMLElement).tagName === "INPUT")) {
      event.preventDefault();
      event.stopPropagation();
      (event.target as HTMLElement).blur();
      document.getElementById("view")?.focus();
    }
  };
  const tags = (text: string): string[] => [...new Set(text.split(",").map((tag) => tag.trim()).filter(Boolean))];
  return (
    <div class="review" id="review" key={index}>
      <div class="decide">
        <button type="button" class="small accept" id="accept" aria-pressed={review.decision === "accept"} onClick={() => onDecide("accept")}>✓ Accept <kbd>A</kbd></button>
        <button type="button" class="small reject" id="reject" aria-pressed={review.decision === "reject"} onClick={() => onDecide("reject")}>✗ Reject <kbd>R</kbd></button>
        <button type="button" class="small" disabled={!state.reviews.canUndo} onClick={() => state.undo()}>Undo <kbd>U</kbd></button>
      </div>
      <label for="note">Note <kbd>N</kbd></label>
      <textarea id="note" rows={2} maxLength={2000} value={review.note} onKeyDown={leave} onChange={(event) => state.setReview(index, { note: event.currentTarget.value })} />
      <label for="tags">Tags, separated by commas <kbd>T</kbd></label>
      <input type="text" id="tags" maxLength={200} value={review.tags.join(", ")} onKeyDown={leave} onChange={(event) => state.setReview(index, { tags: tags(event.currentTarget.value) })} />
    </div>
  );
}
