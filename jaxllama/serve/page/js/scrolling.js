/**
 * Scrolling that follows a growing list until the reader scrolls up. Used by the chat and by rooms.
 */

const NEAR = 48; // pixels from the end that still count as the end

/** Keeps the end of a list in view. */
export class Scrolling {
  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} latest a button that leads back to the end
   */
  constructor(scroller, latest) {
    this.scroller = scroller;
    this.latest = latest;
    this.following = true;
    this.placed = 0; // the position that the page last scrolled to by itself
    scroller.addEventListener("scroll", () => this.noticeScroll());
    latest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follow()).observe(scroller);
  }

  noticeScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.latest.hidden = this.following;
  }

  follow() {
    const { scroller } = this;
    // The reader may have scrolled up, and the scroll event may not have arrived yet.
    if (!this.following || scroller.scrollTop < this.placed) this.noticeScroll();
    if (!this.following) return;
    scroller.scrollTop = scroller.scrollHeight;
    this.placed = scroller.scrollTop;
  }

  toEnd() {
    this.following = true;
    this.placed = 0;
    this.follow();
    this.latest.hidden = true;
  }
}
